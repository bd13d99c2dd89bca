"""Where a run is made: a launch file for machines of one's own (``local.yaml``) and job submission (``submit``)."""
