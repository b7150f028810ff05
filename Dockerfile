# The model server: nginx, uWSGI and TensorFlow, for one user without rights.  It needs no compiler, and has none.
#   docker build -t muleteer .
#   docker run -p 8080:80 muleteer
#   docker run -p 8080:80 -v $PWD/my_model:/models/my_model:ro -e MODEL=/models/my_model muleteer
ARG BASE_IMAGE=python:3.11-slim-bookworm
# tensorflow, or gpu for tensorflow[and-cuda]
ARG EXTRA=tensorflow

# ---- build: uWSGI comes as source; the venv is made where it will run, for its scripts name their Python
FROM ${BASE_IMAGE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
RUN python3 -m venv --without-pip /srv/muleteer/.venv
COPY pyproject.toml constraints.txt ./
ARG EXTRA
RUN python3 -m pip --python /srv/muleteer/.venv/bin/python install --no-cache-dir -c constraints.txt ".[$EXTRA]"

# ---- example: trains the digits model, and fails when its accuracy on held-out images is too low
FROM build AS example
ARG EXTRA
RUN python3 -m pip --python /srv/muleteer/.venv/bin/python install --no-cache-dir -c constraints.txt ".[$EXTRA,examples]"
COPY examples/digits examples/digits
RUN mkdir models && /srv/muleteer/.venv/bin/python examples/digits/train.py models/digits

# ---- load: what `muleteer tune` asks its servers with
FROM build AS load
COPY load load
RUN /srv/muleteer/.venv/bin/python -c 'from load import loadgen; loadgen.compiled()'

# ---- slim: the same venv without what never runs: C++ headers, symbol tables, a parser of C that nothing imports.
# Bytecode stays, for the file system may be read-only: without it each replica would compile TensorFlow's Python.
FROM build AS slim
RUN cd /srv/muleteer/.venv/lib/python3*/site-packages \
    && rm -rf tensorflow/include clang/native/libclang.so \
    && find tensorflow -name '*.so*' -type f -exec strip --strip-unneeded {} +

# ---- code: readable for every user, whatever the umask of the checkout was
FROM ${BASE_IMAGE} AS code
WORKDIR /srv/muleteer
COPY app app
COPY conform conform
COPY load load
COPY mules mules
COPY serving serving
COPY sources sources
COPY tuning tuning
COPY examples/fancy examples/fancy
COPY wsgi.py muleteer.py trial.py catalog.py children.py refusals.py supervisor.py instance.py nginx.py reload.py conform.py cases.py placeholders.py doctor.py status.py entrypoint.sh uwsgi.ini nginx.conf grpc.conf ./
RUN python3 -m compileall -q . && chmod -R a+rX . && chmod a+x entrypoint.sh

# ---- what runs
FROM ${BASE_IMAGE}
# /run is writable for any user, and so is a tmpfs over it, which takes its mode; nginx opens its own error.log before it
# reads where ours is; LightGBM looks for libgomp1, which others bring themselves
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 nginx \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin \
    && ln -sf /dev/stderr /var/log/nginx/error.log \
    && chmod 1777 /run \
    && useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin muleteer
WORKDIR /srv/muleteer
COPY --from=slim /srv/muleteer/.venv .venv
COPY --from=example /build/models models
COPY --from=load /build/build build
COPY --from=code /srv/muleteer ./
RUN ln -s /srv/muleteer/entrypoint.sh /usr/local/bin/muleteer
ENV HOST=0.0.0.0 PORT=80 RUN_DIR=/run/muleteer HOME=/tmp PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 80
STOPSIGNAL SIGTERM
# SageMaker may choose the port, by SAGEMAKER_BIND_TO_PORT
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true
# a model may take minutes to load; one that cannot be loaded ends the container; nginx.conf knows where it listens
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 CMD ["python3", "-Ic", "import http.client, os, re, sys; conf = open(os.environ['RUN_DIR'] + '/nginx.conf').read(); c = http.client.HTTPConnection(re.search('listen ([^ ]+) backlog', conf)[1], timeout=4); c.request('GET', '/readyz'); r = c.getresponse(); print(r.read().decode()); sys.exit(r.status != 200)"]
ENTRYPOINT ["/srv/muleteer/entrypoint.sh"]
CMD ["serve"]
