"""What runs beside the optimizer steps of a stage: Lightning callbacks, one file each, listed in conf/callbacks/."""
