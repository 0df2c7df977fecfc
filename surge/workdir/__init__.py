"""The workdir: labelled arrays and JSON, written whole or not at all.

config.json                 the config that every result here belongs to
checkpoints/                training states at chosen losses
measure.nc                  gradient statistics and one-step learning rates, a row a checkpoint
sweep/OPTIMIZER-bBATCH.nc   one file for each finished piece of the grid
fit.json                    optima, noise scales and fitted laws
figures/*.svg, report.html
"""
