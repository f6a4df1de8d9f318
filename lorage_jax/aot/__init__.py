"""Programs compiled for TPUs that are not there: memory, collectives and a roofline."""
