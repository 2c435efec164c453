"""What an upload leaves behind: images held, a line for each file received, and the answer."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from qure_provider.emulator import answers
from qure_provider.emulator.exchange import Exchange, json_answer
from qure_provider.emulator.header import NOT_IMPLEMENTED, Header, read_header
from qure_provider.emulator.intake import Intake
from qure_provider.emulator.model import LicenseExpired, LoseFiles, ReceivedFile
from qure_provider.emulator.settings import Answers, Counting, MessageKeys

if TYPE_CHECKING:
    from pathlib import Path

    from qure_provider.emulator.intake import Part
    from qure_provider.emulator.service import Service


class Uploads:
    """Takes uploads in, and remembers what came.

    Args:
        service: Where images are registered.
        record: File for a line about each file received.
    """

    def __init__(self, service: Service, record: Path) -> None:
        self._service = service
        self._record = record
        self._count = 0
        self._record.touch()

    async def take(self, exchange: Exchange, refused: Response | None) -> Response:
        """Take one upload in.

        Args:
            exchange: The request.
            refused: The answer if nothing of it is wanted.

        Returns:
            The answer.
        """
        settings = self._service.settings
        request, limit = exchange.request, settings.max_request_bytes
        intake = Intake(request.headers.get("content-type", ""), self._service.store.place)
        kept = False
        try:
            # What is not wanted is read all the same: a client that is still sending would miss the answer.
            async for chunk in request.stream():
                exchange.record.size += len(chunk)
                if refused is None and exchange.record.size <= limit:
                    intake.write(chunk)
            if exchange.record.size > limit:
                return Response(answers.TOO_LARGE, 413, media_type="text/html")
            if refused:
                return refused
            if not intake.understood:
                return json_answer(answers.NO_FILES, 400)
            parts = intake.parts
            headers = await asyncio.to_thread(
                lambda: [
                    read_header(part.path, cut=not settings.keep_received) if part.size else None for part in parts
                ]
            )
            about = {uid for header in headers if header for uid in header.uids}
            if early := await exchange.suffer(about):
                return early
            kept = True
            return self._registered(exchange, intake.dialect, list(zip(parts, headers, strict=True)))
        finally:
            intake.close() if kept else intake.discard()

    def received(self, uid: str | None) -> list[ReceivedFile]:
        """List the files received.

        Args:
            uid: Only those of this study, series or image.

        Returns:
            The files, in order of arrival.
        """
        with self._record.open(encoding="utf-8") as lines:
            files = [ReceivedFile.model_validate_json(line) for line in lines if uid is None or uid in line]
        return [file for file in files if uid is None or uid in file.uids]

    def forget(self) -> None:
        """Remember nothing; the files stay on disk."""
        self._count = 0
        self._record.write_text("")

    def _registered(self, exchange: Exchange, dialect: str, files: list[tuple[Part, Header | None]]) -> Response:
        settings, store, fault = self._service.settings, self._service.store, exchange.fault
        now = time.time()
        self._count += 1
        expired = isinstance(fault, LicenseExpired)
        first_lost = len(files)
        if isinstance(fault, LoseFiles):
            first_lost = 0 if fault.count is None else len(files) - fault.count
        rejected = settings.reject_unsupported_uploads and all(
            header is None or header.usecase == NOT_IMPLEMENTED for _, header in files
        )
        messages: dict[str, Any] = {}
        counted: dict[str, set[str]] = {}
        lines = []
        for index, (part, header) in enumerate(files):
            is_lost = index >= first_lost
            is_held = header is not None and not is_lost and not rejected
            created = False
            if header is not None and is_held:
                created = self._hold(header, part, now, licensed=not expired)
                counted.setdefault(header.series_instance_uid, set()).add(header.sop_instance_uid)
            lines.append(_line(part, header, now, self._count, dialect, is_held=is_held, created=created))
            if not is_lost or (isinstance(fault, LoseFiles) and fault.acknowledged):
                key = part.key if settings.message_keys is MessageKeys.FORM else f"file{index}"
                messages[key] = _message(header, created=created or is_lost, expired=expired)
        with self._record.open("a", encoding="utf-8") as record:
            record.writelines(lines)
        if not any(header for _, header in files):
            return json_answer(answers.NO_FILES, 400)
        if rejected:
            return json_answer(answers.NOT_IMPLEMENTED, 400)
        counts = {
            uid: store.held(uid) if settings.counts is Counting.HELD else len(sops) for uid, sops in counted.items()
        }
        body = {
            "message": "Success",
            "status": "success",
            "messages": messages,
            "series_instance_uids": list(counts),
            "detailed_info": [
                {"SeriesInstanceUID": uid, "NumberOfSeriesRelatedInstances": count} for uid, count in counts.items()
            ],
        }
        if settings.answers is Answers.OLDER:
            del body["status"], body["messages"]
        return json_answer(body)

    def _hold(self, header: Header, part: Part, now: float, *, licensed: bool) -> bool:
        store = self._service.store
        created = store.register(header, part.number, now, self._service.quiet_seconds)
        resource = store.by_sop(header.sop_instance_uid)
        if not licensed and resource is not None:
            resource.licensed = False
        return created


def _line(
    part: Part, header: Header | None, now: float, upload: int, dialect: str, *, is_held: bool, created: bool
) -> str:
    record = ReceivedFile(
        at=now,
        request=upload,
        number=part.number,
        key=part.key,
        file_name=part.file_name,
        headers=part.headers,
        dialect=dialect,
        size=part.size,
        sha256=part.sha256,
        path=str(part.path),
        study_instance_uid=header.study_instance_uid if header else "",
        series_instance_uid=header.series_instance_uid if header else "",
        sop_instance_uid=header.sop_instance_uid if header else "",
        registered=is_held,
        created=created,
    )
    return f"{record.model_dump_json()}\n"


def _message(header: Header | None, *, created: bool, expired: bool) -> answers.Json:
    """One entry of ``messages``. What ``metadata`` holds is not stated anywhere."""
    if header is None:
        return {"message": answers.NOT_DICOM, "created": False, "license_expired": expired, "metadata": {}}
    return {
        "message": answers.REGISTERED,
        "created": created,
        "license_expired": expired,
        "metadata": {
            "PatientID": header.patient_id,
            "StudyInstanceUID": header.study_instance_uid,
            "SeriesInstanceUID": header.series_instance_uid,
            "SOPInstanceUID": header.sop_instance_uid,
            "Modality": header.modality,
        },
    }
