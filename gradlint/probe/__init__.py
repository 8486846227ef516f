"""The probe: experiments that confirm or refute a candidate, run in a confined worker process."""
