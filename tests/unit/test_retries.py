from datetime import timedelta

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction

from qure_provider.api.errors import QureRejectedError, QureSettingsError, QureTransientError
from qure_provider.retries import NightUnresolvedError, QureRetryPolicy, StepIncompleteError
from qure_provider.settings import IdentityPolicyError

TRANSIENT = QureTransientError("the service failed")
LATER = QureTransientError("too many requests", retry_after=3)
MUCH_LATER = QureTransientError("too many requests", retry_after=40)
REJECTED = QureRejectedError("unsupported")
SETTINGS = QureSettingsError("the token is wrong")


def decide(error):
    return QureRetryPolicy().evaluate(error, 1, 3)


def incomplete(*errors):
    return StepIncompleteError("Uploading", [(f"ref{number}", error) for number, error in enumerate(errors)], 9)


@pytest.mark.parametrize(
    "error",
    [
        SETTINGS,
        REJECTED,
        IdentityPolicyError("decide"),
        NightUnresolvedError("needs somebody"),
        incomplete(REJECTED),
        incomplete(SETTINGS),
    ],
)
def test_what_no_retry_can_mend_fails_at_once(error):
    assert decide(error).action is RetryAction.FAIL


@pytest.mark.parametrize(
    "error",
    [TRANSIENT, incomplete(TRANSIENT), incomplete(TRANSIENT, REJECTED), incomplete(TRANSIENT, SETTINGS), OSError("x")],
)
def test_what_may_pass_is_retried_as_the_task_says(error):
    assert decide(error).action is RetryAction.DEFAULT


@pytest.mark.parametrize(
    ("error", "seconds"), [(LATER, 3), (incomplete(LATER), 3), (incomplete(LATER, TRANSIENT, MUCH_LATER), 40)]
)
def test_a_time_that_the_service_named_is_kept(error, seconds):
    decision = decide(error)
    assert decision.action is RetryAction.RETRY
    assert decision.retry_delay == timedelta(seconds=seconds)


def test_the_policy_survives_the_way_into_the_database():
    path, data = f"{QureRetryPolicy.__module__}.{QureRetryPolicy.__qualname__}", QureRetryPolicy().serialize()
    assert path == "qure_provider.retries.QureRetryPolicy"
    assert isinstance(QureRetryPolicy.deserialize(data), QureRetryPolicy)


def test_an_incomplete_step_says_what_failed_and_of_how_many_and_stays_short():
    text = str(incomplete(TRANSIENT, REJECTED))
    assert text == "Uploading failed for 2 of 9: ref0: the service failed; ref1: unsupported"
    many = str(incomplete(*[TRANSIENT] * 8))
    assert "failed for 8 of 9" in many
    assert "ref4" in many
    assert "ref5" not in many
    assert many.endswith("and 3 more")
