"""Calibration of alexnet.training.diagnosis: small runs that learn and runs that fail, and what the detector finds.

    networks  small networks, healthy and with faults
    runs      the runs, by what is wrong with them

python -m experiments.diagnosis trains them and writes results.csv.
"""
