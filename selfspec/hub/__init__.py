"""Models that somebody else trained, as trunks: adapters, attaching a head, publishing."""

from selfspec.hub.attach import attach_head as attach_head
from selfspec.hub.causal import adapt_causal as adapt_causal
from selfspec.hub.publish import download as download
from selfspec.hub.publish import push_to_hub as push_to_hub
from selfspec.hub.reunite import Reunion as Reunion
from selfspec.hub.trunk import HubTrunk as HubTrunk
from selfspec.hub.trunk import Vocabulary as Vocabulary
