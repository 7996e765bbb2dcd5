"""The commands of python -m alexnet, one file each: configure(parser), run(options) -> exit status.

A file is imported when its command is asked for: whoever predicts does not wait for matplotlib.
"""

COMMANDS = {                                     # name -> what the list of commands says
    "summary": "layers, shapes, parameters and multiply-adds of a network",
    "plot": "draw the learning curves, time and filters of one run or several",
    "evaluate": "cost, top-1 and top-5 error of trained weights on a data set or a folder of images",
    "predict": "the most probable classes of images",
    "export": "write trained weights as safetensors, ONNX or theano_alexnet's files",
}
