"""The generator: leases tasks, samples answers at tau_s, follows the newest weights. Never imports learner."""
