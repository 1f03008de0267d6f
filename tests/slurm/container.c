/* A stand-in for pyxis: Slurm options of the same names, without images.
 *
 * A task with an image or a container's name gets a mount namespace of its own, in which the folder
 * that plugstack.conf names (hide=FOLDER) is empty but for what --container-mounts puts there. So a
 * script that forgets a mount fails here as it would in a container.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <slurm/spank.h>

SPANK_PLUGIN(container_standin, 1)

enum { IMAGE, MOUNTS, WORKDIR, VALUES };
#define MAX_MOUNTS 64

static char *values[VALUES];

static int take_value(int which, const char *text, int remote)
{
    (void)remote;
    free(values[which]);
    values[which] = strdup(text);
    return 0;
}

static int take_flag(int which, const char *text, int remote)
{
    (void)which, (void)text, (void)remote;
    return 0;
}

static struct spank_option options[] = {
    {"container-image", "IMAGE", "stand-in: only recorded", 1, IMAGE, take_value},
    {"container-mounts", "SRC:DST[:ro],...", "stand-in: bind mounts", 1, MOUNTS, take_value},
    {"container-workdir", "PATH", "stand-in: working directory", 1, WORKDIR, take_value},
    {"no-container-mount-home", NULL, "stand-in: no effect", 0, 0, take_flag},
    SPANK_OPTIONS_TABLE_END};

static const char *hidden;

int slurm_spank_init(spank_t spank, int count, char **arguments)
{
    spank_context_t context = spank_context();
    if (context != S_CTX_LOCAL && context != S_CTX_REMOTE && context != S_CTX_ALLOCATOR)
        return 0;
    for (int i = 0; i < count; i++)
        if (!strncmp(arguments[i], "hide=", 5))
            hidden = arguments[i] + 5;
    for (int i = 0; options[i].name; i++)
        if (spank_option_register(spank, &options[i]) != ESPANK_SUCCESS)
            return -1;
    return 0;
}

/* The parents of a path, and the path itself as a folder or an empty file. */
static void make_target(const char *path, int is_folder)
{
    char *copy = strdup(path);
    for (char *slash = strchr(copy + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(copy, 0755);
        *slash = '/';
    }
    if (is_folder) {
        mkdir(copy, 0755);
    } else {
        int file = open(copy, O_CREAT | O_WRONLY, 0644);
        if (file >= 0)
            close(file);
    }
    free(copy);
}

struct bind {
    int source;
    const char *target;
    int is_folder, read_only;
};

/* Opened before the folder is hidden, so that a source may lie in it. */
static int open_sources(char *mounts, struct bind *binds)
{
    int count = 0;
    char *state, *mount;
    for (mount = strtok_r(mounts, ",", &state); mount; mount = strtok_r(NULL, ",", &state)) {
        char *target = strchr(mount, ':'), *flags = NULL;
        struct stat status;
        if (target) {
            *target++ = 0;
            if ((flags = strchr(target, ':')))
                *flags++ = 0;
        }
        int source = open(mount, O_PATH | O_CLOEXEC);
        if (count == MAX_MOUNTS || source < 0 || fstat(source, &status)) {
            slurm_error("stand-in for pyxis: couldn't mount %s: %s", mount, strerror(errno));
            return -1;
        }
        binds[count].source = source;
        binds[count].target = target ? target : mount;
        binds[count].is_folder = S_ISDIR(status.st_mode);
        binds[count++].read_only = flags && strstr(flags, "ro");
    }
    return count;
}

int slurm_spank_task_init_privileged(spank_t spank, int argument_count, char **arguments)
{
    (void)spank, (void)argument_count, (void)arguments;
    struct bind binds[MAX_MOUNTS];
    int count;
    if (!values[IMAGE])
        return 0;
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) {
        slurm_error("stand-in for pyxis: no namespace: %m");
        return -1;
    }
    if ((count = open_sources(strdup(values[MOUNTS] ? values[MOUNTS] : ""), binds)) < 0)
        return -1;
    if (hidden && mount("tmpfs", hidden, "tmpfs", 0, NULL)) {
        slurm_error("stand-in for pyxis: cannot hide %s: %m", hidden);
        return -1;
    }
    for (int i = 0; i < count; i++) {
        char source[64];
        snprintf(source, sizeof source, "/proc/self/fd/%d", binds[i].source);
        make_target(binds[i].target, binds[i].is_folder);
        if (mount(source, binds[i].target, NULL, MS_BIND | MS_REC, NULL) ||
            (binds[i].read_only &&
             mount(NULL, binds[i].target, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL))) {
            slurm_error("stand-in for pyxis: couldn't mount %s: %m", binds[i].target);
            return -1;
        }
        close(binds[i].source);
    }
    return 0;
}

int slurm_spank_task_init(spank_t spank, int argument_count, char **arguments)
{
    (void)argument_count, (void)arguments;
    if (!values[IMAGE])
        return 0;
    spank_setenv(spank, "STANDIN_IMAGE", values[IMAGE], 1);
    if (values[WORKDIR] && chdir(values[WORKDIR])) {
        slurm_error("stand-in for pyxis: no folder %s: %m", values[WORKDIR]);
        return -1;
    }
    return 0;
}
