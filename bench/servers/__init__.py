"""Other model servers, each as its documentation shows it, for comparison with rlvo.

``python -m bench.servers PEER PORT FOLDER`` starts one. FOLDER is a model version.
"""
