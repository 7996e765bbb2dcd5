"""Draw the learning curves and the first filters of a run."""

from alexnet.plots import draw


def configure(parser):
    parser.add_argument("run", metavar="RUN", help="folder of the run")


def run(options):
    print("\n".join(f"drew {picture}" for picture in draw(options.run)))
    return 0
