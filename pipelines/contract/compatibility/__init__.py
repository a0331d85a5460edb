"""Whether a change of the contract lets old and new writers and readers understand each other."""
