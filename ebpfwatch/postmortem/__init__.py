"""Our evidence out of a dead machine: ``dump`` finds it in a vmcore, ``blackbox`` decodes it."""
