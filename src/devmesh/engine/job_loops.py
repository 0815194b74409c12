"""What moves jobs when nobody asks, in one list."""

from __future__ import annotations

from devmesh.engine.job_limits_keeper import JobLimitsKeeper
from devmesh.engine.job_promoter import JobPromoter
from devmesh.engine.job_reaper import JobReaper
from devmesh.engine.looks import Looks
from devmesh.engine.loop import Loop
from devmesh.engine.scheduler import Scheduler
from devmesh.engine.snapshotter import Snapshotter
from devmesh.engine.worker_watch import WorkerWatch
from devmesh.operations.work import WorkRunner
from devmesh.settings import Settings


def job_loops(runner: WorkRunner, looks: Looks, settings: Settings) -> list[Loop]:
    return [
        JobReaper(runner, looks, settings.reaper_interval_s),
        JobLimitsKeeper(runner, looks, settings.reaper_interval_s, settings.days_kept("jobs")),
        WorkerWatch(runner, looks, settings.reaper_interval_s, settings.worker_health_days_kept),
        Snapshotter(runner, looks, settings.scheduler_interval_s),
        Scheduler(runner, looks, settings.scheduler_interval_s, settings.schedule_grace_s),
        JobPromoter(
            runner, looks, settings.promoter_interval_s, settings.promote_low_after_s, settings.promote_medium_after_s
        ),
    ]
