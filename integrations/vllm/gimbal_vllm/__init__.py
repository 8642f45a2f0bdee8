"""An EPLB policy for vLLM that asks a gimbal placement service where experts should live.

All ranks take one decision: one of them asks, all of them check, and unless every one of them holds the same plan, all of them keep
the map that is in force. Needs numpy, and torch only where vLLM brings it.
"""

from .agreement import Agreement, TorchAgreement
from .client import PlacementClient, ServiceFailure
from .plugin import register
from .policy import PlacementPolicy

__all__ = ["Agreement", "PlacementClient", "PlacementPolicy", "ServiceFailure", "TorchAgreement", "register"]
