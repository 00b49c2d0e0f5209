"""What this device is and has: every reader of /proc, /sys and cgroups that belongs to no one else."""
