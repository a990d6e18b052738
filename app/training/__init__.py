"""From a cohort of patients to a model version, one module per stage."""
