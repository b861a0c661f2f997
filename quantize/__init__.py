"""Checkpoints become artefacts: conversion and quantization.  Never imports adapters."""

from .conversion import Converted, Plan, convert, plan

__all__ = ["Converted", "Plan", "convert", "plan"]
