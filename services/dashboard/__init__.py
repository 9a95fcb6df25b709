"""The dashboard: the page, and the routes that only it needs."""
