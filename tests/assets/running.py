"""Runs assets in the process of the test, and reads what they report."""

from typing import Any

import dagster as dg

from assets.resources import Karmalake


def materialize(
    karmalake: Karmalake, instance: dg.DagsterInstance, assets: list[Any], **options: Any
) -> dg.ExecuteInProcessResult:
    return dg.materialize(assets, resources={"karmalake": karmalake}, instance=instance, **options)


def days(first: str, last: str) -> dict[str, str]:
    """Return the tags of a run over a range of days."""
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def metadata(result: dg.ExecuteInProcessResult, asset: dg.AssetsDefinition) -> dict[str, Any]:
    [values] = metadata_by_day(result, asset).values()
    return values


def metadata_by_day(result: dg.ExecuteInProcessResult, asset: dg.AssetsDefinition) -> dict[str | None, dict[str, Any]]:
    events = result.asset_materializations_for_node(asset.node_def.name)
    return {event.partition: {name: value.value for name, value in event.metadata.items()} for event in events}
