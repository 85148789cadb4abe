"""Bounds on what goes into files and comes out of them."""

from __future__ import annotations

from pydantic import Field

from app.settings.part import Part


class TransferSettings(Part):
    ceiling_mib: int = Field(16_384, ge=1, description="largest body of a PUT")
    stall_seconds: float = Field(
        60, gt=0, allow_inf_nan=False, description="a client that sends and reads nothing for so long is cut off"
    )
    answers_mib: int = Field(256, ge=64, description="memory for answers on their way to clients, all together")
    bodies_mib: int = Field(512, ge=8, description="memory for request bodies, all together")
