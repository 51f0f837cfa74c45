"""
Residual streams that are mixed: hyper-connections (Zhu et al. 2024, arXiv 2409.19606), mHC (DeepSeek 2025, arXiv 2512.24880) and
AltUp (Baykal et al. 2023, arXiv 2301.13310). The models are model_mhc.py and model_mhc_mixed.py.

    doubly_stochastic   H_res: four ways from free numbers to a doubly stochastic matrix
    connections         the parameters of all sub-layers, and the maps H_pre, H_res, H_post that they give
    mixing              streams made, read, written, brought together
    telemetry           what the mixing does: sums, distances, products over depth, likeness of streams
"""
