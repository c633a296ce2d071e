"""Jobs handed to Slurm: submitted, watched, put back into the queue, and what runs inside of them."""
