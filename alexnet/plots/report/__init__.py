"""report.html of a run: one file that needs no network, rewritten after epochs.

    predictions   what a validation predicted: confusion matrix, sample of images, worst mistakes
    history       what the report shows besides the records: predictions and filters, in report.safetensors
    run_report    the report of a run that trains
    page          the page
    sections      its parts
    chart         curves as SVG
"""
