"""The hook to what de-identification needs of Airflow: the secret key, and the site's profile."""

from __future__ import annotations

import base64
import binascii
import json
from functools import cached_property
from importlib.util import find_spec

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from qure_provider import connection_forms
from qure_provider.api.errors import QureSettingsError
from qure_provider.dicom.deidentify import Deidentifier
from qure_provider.dicom.profile import Profile, ProfileError
from qure_provider.dicom.pseudonym import KEY_LENGTH, Pseudonymizer
from qure_provider.hooks.connection import AirflowConnection, Fields

_LIBRARIES = ("dicomanonymizer", "pypdf")
_MAKE_ONE = (
    "Make one with 'openssl rand -base64 32', enter it as the connection's secret key, and keep a copy in a safe"
)


class DeidentifyHook(BaseHook):
    """Reads the key for pseudonyms from an Airflow connection; nothing is sent anywhere.

    Whoever knows the key can tell whose pseudonyms are. It is in no file, log or table of ours.

    Args:
        deidentify_conn_id: The Airflow connection, of type ``qure_deidentify``. Its password is the key, in Base64, 32
            random bytes or more; ``profile`` in its extra is JSON as ``Profile.from_mapping`` takes it.
    """

    conn_name_attr = "deidentify_conn_id"
    default_conn_name = "qure_deidentify_default"
    conn_type = "qure_deidentify"
    hook_name = "Qure.ai de-identification"

    def __init__(self, deidentify_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.deidentify_conn_id = deidentify_conn_id

    @cached_property
    def pseudonyms(self) -> Pseudonymizer:
        """What makes pseudonyms.

        Raises:
            QureSettingsError: There is no such connection, or no key in it, or one that is too short.
        """
        connection, fields = self._read
        text = str(connection.password or "").strip()
        if not text:
            raise fields.error("secret key", f"is empty. {_MAKE_ONE}")
        try:
            key = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise fields.error("secret key", f"is not Base64. {_MAKE_ONE}") from None
        if len(key) < KEY_LENGTH:
            raise fields.error(
                "secret key", f"has {len(key)} bytes, and {KEY_LENGTH} random ones are needed. {_MAKE_ONE}"
            )
        return Pseudonymizer(key)

    @cached_property
    def profile(self) -> Profile:
        """What becomes of each attribute.

        Raises:
            QureSettingsError: There is no such connection, or its profile cannot be followed.
        """
        fields = self._read[1]
        value = fields.raw("profile")
        try:
            values = json.loads(value) if isinstance(value, str) else value or {}
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise fields.error("profile", "must be a JSON object")
        try:
            return Profile.from_mapping(values)
        except ProfileError as error:
            raise fields.error("profile", f"cannot be followed: {error}") from None

    def get_conn(self) -> Deidentifier:
        """Return what de-identifies files, with its memory of their study: one for many files is fast.

        Raises:
            QureSettingsError: The connection is missing, or wrong, or a library that is needed is not installed.
        """
        if not all(map(find_spec, _LIBRARIES)):
            raise QureSettingsError(
                "De-identification needs dicom-anonymizer and pypdf, and nothing was sent without them. Install "
                "airflow-provider-qure[deidentify] wherever tasks run."
            )
        return Deidentifier(self.pseudonyms, self.profile)

    def test_connection(self) -> tuple[bool, str]:
        """Say whether key and profile can be used. The key's id tells keys apart and tells nothing of the key."""
        try:
            self.get_conn()
            method = ", ".join(self.profile.method)
        except QureSettingsError as error:
            return False, str(error)
        return True, f"Key {self.pseudonyms.key_id} can be used, with the profile: {method}"

    @cached_property
    def _read(self) -> tuple[AirflowConnection, Fields]:
        try:
            connection = self.get_connection(self.deidentify_conn_id)
        except AirflowNotFoundException:
            raise QureSettingsError(
                f"There is no connection {self.deidentify_conn_id!r}, so nothing can be de-identified and nothing was "
                f"sent. Add one of type {self.conn_type}, or name another in [qure] deidentify_conn_id. {_MAKE_ONE}."
            ) from None
        return connection, Fields.of(connection, connection_forms.DEIDENTIFY)
