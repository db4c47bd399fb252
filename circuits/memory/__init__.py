"""How much memory there is, what measuring takes of it, and the plan that keeps within."""
