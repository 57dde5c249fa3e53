"""Running files on another machine: the script that runs there, and the link to it."""
