"""Plots of runs as PNG, SVG or PDF, and the report of a run as one HTML file.

    drawing   all plots of one run, or of several         curves   cost and errors of one or several runs
    records   records of the runs as arrays               times    calc, sync, comm and wait
    mosaic    filters as a grid of tiles                   tiles    plots of the filters of the first layer
    style     colours, axes, files                        speedup  speed-up of more workers, relative to the ideal
    pushes    pushes to a parameter server and their staleness (records of kind push)
    rate_range  sweep and trials of the learning rate range test
    report    report.html; does not need matplotlib

This is the only package that uses matplotlib. Figures are rendered off screen, so no display is needed.
"""
