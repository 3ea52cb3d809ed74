"""Plain data that modules hand on and that files hold, as JSON and YAML have it."""
