"""Recipe of the embedded evaluation features: `python -m outsourced.zoo.fashion_features`.

The same as `python -m outsourced.zoo.fashion_classifier --which fashion_features`, under the name
of the weights, as for every network of the zoo.
"""

import sys

from outsourced.zoo.fashion_classifier import main

if __name__ == "__main__":
    main(["--which", "fashion_features", *sys.argv[1:]])
