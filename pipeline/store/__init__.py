"""The feature store: what was computed, under keys that say how, with receipts that prove it."""

from recon.pipeline.store.feature_store import FeatureStore as FeatureStore
