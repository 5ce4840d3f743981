"""Other people's models: their causal language models as experts."""

from fastgrow.interop.hub_expert import HubExpert
from fastgrow.interop.hub_vocabulary import HubVocabulary

__all__ = ["HubExpert", "HubVocabulary"]
