"""The rules and strategies at equal virtual time: error against time and bytes, 2 to 1,024 workers, three links.

The trajectory is that of a small perceptron (experiments.asgd.task), the clock is AlexNet's:

    clock        seconds and bytes of a step and of an exchange of AlexNet        clock.py
    methods      the rules with their settings, and the values that are tried     methods.py
    trajectory   test error and arrays sent over steps or seconds                 trajectory.py
    search       the best settings of a method, for a number of workers and link  search.py
    claims       the claims of the papers and of this project, with numbers       claims.py
    tables       tables.py, and the figures: figures.py

Strategies, overlap and factors do not change a trajectory (asa16 does, by rounding), so one trajectory of a synchronous
rule serves all links and strategies. That of an asynchronous rule depends on the link, because its order of events
does. The same settings give the same bits on every machine with the same BLAS.
"""
