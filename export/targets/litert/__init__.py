"""TFLite: conversion, sizes and proof of modules for LiteRT, on the CPU and the NPU."""
