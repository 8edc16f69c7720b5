"""Several processes as one job: started, watched, ended together, on this machine or on several.

launch.py (the parent) and worker.py (inside each process) are what other rooms use. They tell each other how it goes
through small files (reports.py, relay.py).
"""
