"""What transformers calls the cache of keys and values, as an argument of models, layers and attention, and as a field of outputs: cache
since 5.24, past_key_values before."""

from __future__ import annotations

import dataclasses

from transformers.modeling_outputs import BaseModelOutputWithPast

CACHE = "cache" if "cache" in {field.name for field in dataclasses.fields(BaseModelOutputWithPast)} else "past_key_values"
