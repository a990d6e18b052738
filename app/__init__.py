"""rlvo: predicts refractory large vessel occlusion from CT volumes and clinical data. Research use only."""
