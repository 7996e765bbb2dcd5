"""Long use and killed processes: what a run keeps, what it leaves behind, and how often it continues.

    steps        one long training of two workers: memory, descriptors and files of its processes     steps.py
    starts       many short runs that finish, are stopped or lose a process                           starts.py
    saves        kills of a process that saves checkpoints                                            saves.py
    preprocess   kills of `python -m preprocess`, each followed by a run that continues               conversion.py
    jobs         kills of a process of an MPI job that is restarted                                   jobs.py
    asleep       suspension of all processes of a run, for longer than its time limits                asleep.py

A trial is one line of a JSON file, so an interrupted count continues where it stopped (journal.py). processes.py
observes a program with all its processes, analysis.py computes slopes and tables.
"""
