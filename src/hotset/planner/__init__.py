"""Pure functions from measured statistics and rates to a plan: no file, no device."""
