"""How fast the engine is: fixed workloads, our engine and its peers in one program, taking turns."""
