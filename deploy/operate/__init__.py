"""What a person does with a run that is active: look at it, scale it, pause it, stop it, read its logs."""
