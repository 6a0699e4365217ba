"""The formats of exports, one file for a trainer. The table of them is EXPORTS of data_engine.exports."""
