"""The shipped configurations, in the schema of MMSA's config_regression.json: settings only, no code."""
