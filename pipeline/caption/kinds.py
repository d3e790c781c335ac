"""All kinds of `[[captions]]` tables of a manifest: a new kind is a file beside this one, and a line here."""

from __future__ import annotations

from recon.pipeline.caption.attributes import AttributesTable
from recon.pipeline.caption.captioner import CaptionerTable
from recon.pipeline.caption.facts import FactsTable
from recon.pipeline.caption.file import FileTable
from recon.pipeline.caption.listing import ListingTable
from recon.pipeline.caption.stored import StoredTable
from recon.pipeline.caption.synonyms import SynonymsTable

AnyCaptions = FactsTable | ListingTable | SynonymsTable | FileTable | StoredTable | AttributesTable | CaptionerTable
