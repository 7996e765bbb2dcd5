"""Starting, stopping and watching the processes of a run; how workers that are started by hand find each other."""
