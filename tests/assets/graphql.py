"""Dagster's page as a user of it: launch a run, look at it, terminate it."""

from typing import Any

import httpx

_TIMEOUT_SECONDS = 120.0
_LAUNCH = """
mutation($selector: JobOrPipelineSelector!) {
  launchRun(executionParams: {selector: $selector, mode: "default"}) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""
_STATUS = "query($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"
_EVENTS = """
query($run: ID!) { logsForRun(runId: $run) { ... on EventConnection { events { ... on MessageEvent { message } } } } }
"""
_TERMINATE = """
mutation($run: String!) {
  terminateRun(runId: $run) {
    __typename
    ... on TerminateRunFailure { message }
    ... on PythonError { message }
  }
}
"""
_LOCATIONS = """
{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError { __typename
  ... on RepositoryLocation { repositories { name } } ... on PythonError { message } } } } } }
"""


class Page:
    """The page of `karmalake dagster` at an address."""

    def __init__(self, address: str, token: str) -> None:
        self._url = f"http://{address}/graphql"
        self._headers = {"Authorization": f"Bearer {token}"}

    def is_ready(self) -> bool:
        """Return whether the page answers and its only code location is loaded."""
        try:
            return self._location()["locationOrLoadError"]["__typename"] == "RepositoryLocation"
        except (httpx.TransportError, TypeError, ValueError):  # not there, or not loaded yet
            return False

    def location(self) -> str:
        """Return the name of the code location."""
        return self._location()["name"]

    def launch(self, job: str) -> str:
        """Launch a job; return the id of its run."""
        location = self._location()
        (repository,) = location["locationOrLoadError"]["repositories"]
        selector = {
            "repositoryLocationName": location["name"],
            "repositoryName": repository["name"],
            "jobName": job,
        }
        answer = self._ask(_LAUNCH, selector=selector)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return answer["run"]["runId"]

    def status(self, run: str) -> str:
        """Return the status of a run."""
        return self._ask(_STATUS, run=run)["runOrError"]["status"]

    def events(self, run: str) -> str:
        """Return the messages of a run, one a line."""
        events = self._ask(_EVENTS, run=run)["logsForRun"]["events"]
        return "\n".join(event.get("message", "") for event in events)

    def terminate(self, run: str) -> None:
        """Ask a run to end; assert that its process was reached."""
        answer = self._ask(_TERMINATE, run=run)["terminateRun"]
        assert answer["__typename"] == "TerminateRunSuccess", answer

    def _location(self) -> dict[str, Any]:
        (location,) = self._ask(_LOCATIONS)["workspaceOrError"]["locationEntries"]
        return location

    def _ask(self, query: str, **variables: object) -> Any:
        asked = {"query": query, "variables": variables}
        answer = httpx.post(self._url, json=asked, headers=self._headers, timeout=_TIMEOUT_SECONDS)
        answer.raise_for_status()
        assert "errors" not in answer.json(), answer.text
        return answer.json()["data"]
