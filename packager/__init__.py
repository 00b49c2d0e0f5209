"""The workstation side: source -> build -> check -> evidence -> bundle -> repository -> deploy."""
