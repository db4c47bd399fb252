"""What a run was: which command, model, data and machine, how long it took, what it gave; repeated and cited."""
