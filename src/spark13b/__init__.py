"""spark13b: one command line for the whole life of the iFlytekSpark-13B language model."""

import os

__version__ = "0.1.0"

# MindSpore reads this when it is first imported, wherever that is. Its warnings are for its own developers.
os.environ.setdefault("GLOG_v", "3")
