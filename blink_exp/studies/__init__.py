"""Many evaluations: sweeps, tables, figures, searches, matched budgets and the published numbers beside them."""
